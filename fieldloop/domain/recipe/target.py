"""What a model predicts."""

from fieldloop.domain.recipe.part import Name, Part


class Target(Part):
    """What the model predicts: the metric's value in the window's last step."""

    metric: Name
