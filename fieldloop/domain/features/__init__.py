"""Feature families of the ONNX graph, one a file, each column named `<channel>.<feature>`.

A family is a function from a `Cleaned` window to its columns, float64, NaN where a channel has too few values. A row
must give the same bits alone and in a batch, so a family uses only what cannot depend on how many rows there are:
operators on single elements that IEEE 754 defines (no sine, no exponential), sums through `Cleaned.total`, sums of
integers (exact in any order), and operators that take each row by itself (`TopK`, `DFT`).
"""
