"""The demo: a program that optimizes a prompt, against a simulated model that runs on this machine.

`python -m afnio.demo` runs `_classify.py`, the program of the README, offline and without a key; with a path as its
argument it runs that program.
"""
