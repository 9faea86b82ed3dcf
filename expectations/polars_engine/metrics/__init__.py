"""How each metric is computed: those of rows (`maps`), of columns (`aggregates`) and of the whole table (`table`)."""
