"""What good data is: device profiles, and the Great Expectations suites built from them."""
