"""Our fronts beside what an operator would pick instead and beside the limit, in one run.

`python -m bench.peers` (`make bench-peers`). table.py is arithmetic alone; servers.py starts and
ends what is compared; subjects.py says what is asked of whom.
"""
