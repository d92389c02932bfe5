"""The steps of a resolution, one file each."""
