"""Tags of MLflow runs and versions: what they come from, and by what they are found again."""

from typing import Final

BEST_RUN: Final = "fieldloop.best_run"  # of a parent run: the best candidate's
ALGORITHM: Final = "fieldloop.algorithm"  # of a candidate's run
CONTENT: Final = "fieldloop.content"  # digest of all that a run follows from
SEARCH: Final = "fieldloop.search"  # of a trial's run: digest of what is searched
RECIPE_NAME: Final = "fieldloop.recipe"
RECIPE_DIGEST: Final = "fieldloop.recipe_digest"
GRID_VERSION: Final = "fieldloop.grid_version"
WINDOWS_VERSION: Final = "fieldloop.windows_version"
AS_OF: Final = "fieldloop.as_of"  # the past moment that the tables were made as of, if any
LATE: Final = "fieldloop.late"  # whether what arrived after it is "in" or "out"
GRAPH_DIGEST: Final = "fieldloop.graph"  # SHA-256 of the graph
CODE: Final = "fieldloop.code"  # commit, see `tasks.origin.Origin.code`
NOTES: Final = "fieldloop.notes"  # what a person should know before believing the figures, a line each
BLOCK: Final = "fieldloop.block"  # what windows were drawn by for the intervals
LINEAGE: Final = "lineage."  # prefix of tags that say where a model comes from
