"""Contract watch: does a device still send what its profile promises, in the unit, scale, cadence and clock it had."""
