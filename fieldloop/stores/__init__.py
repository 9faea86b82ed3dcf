"""One file a service: settings, objects (S3), lake (Delta), registry (MLflow), broker (NATS), releases, fleet."""
