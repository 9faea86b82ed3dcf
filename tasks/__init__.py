"""The steps: one file a stage, plain functions with a thin `@task`."""
