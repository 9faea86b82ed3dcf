"""A use case in one document: what a model reads, what it predicts, how it is learnt, judged, proved and released."""

from fieldloop.domain.recipe.candidates import AlgorithmName, Candidate, Classifying
from fieldloop.domain.recipe.inputs import Family, InputChannel
from fieldloop.domain.recipe.part import Name, to_us
from fieldloop.domain.recipe.recipe import Recipe, load_recipe, recipe_file, recipe_names
from fieldloop.domain.recipe.rules import Metric, Promotion

__all__ = [
    "AlgorithmName", "Candidate", "Classifying", "Family", "InputChannel", "Metric", "Name", "Promotion", "Recipe",
    "load_recipe", "recipe_file", "recipe_names", "to_us",
]  # fmt: skip
