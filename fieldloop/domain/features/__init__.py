"""Feature families of the ONNX graph, one a file, each named `<channel>.<feature>`.

A family is a function from a `Cleaned` window to its features, [N, C] float64 each, NaN where a channel has too few
values. Whatever depends on the order of a sum goes through `Cleaned.total`, so that a row gives the same bits alone and
in a batch.
"""
