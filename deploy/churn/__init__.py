"""Node churn recorded from real clouds, replayed through the real command path."""
