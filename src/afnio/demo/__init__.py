"""The demo: the tutorial's job against a simulated LM, an endpoint of yours, or a small LM on this machine.

python -m afnio.demo [--live | --lm local]
"""
