"""The demo: the tutorial's job, as a Trainer and a report.

`python -m afnio.demo` trains the prompt of a sentiment classifier on the FacilitySupport messages and tests the first
and the best prompt. A simulated LM on this machine answers, offline and without a key.
"""
