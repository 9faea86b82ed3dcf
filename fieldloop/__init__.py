"""Fieldloop: proved models on proved devices, from readings in the field to releases at the edge and back."""
