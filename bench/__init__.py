"""The load generator and what belongs to it. It sees a node from outside, as its users do.

`biaojie bench` is in commands.py. Importing this package loads nothing.
"""
