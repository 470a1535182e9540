"""Mutation truth: training scripts damaged or harmlessly rewritten in the syntax tree, labelled by torch.

`operators` makes the mutants, `label` turns what torch measured into the findings that are right, `run` compares them
with what acclint says: `python -m tests.mutations --sample 300 --seed 1`.
"""
