"""Evaluation of policies and models: exact on the joint space, planning, and (later) on balls and by simulation."""
