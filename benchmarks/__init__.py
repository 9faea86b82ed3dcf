"""What is measured: one file a benchmark, each with its peer in the same run; `make bench` lists them."""
