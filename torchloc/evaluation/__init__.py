"""Evaluation of policies and models: exact values on the joint space, and planning."""
