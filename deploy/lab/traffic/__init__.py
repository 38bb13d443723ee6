"""Pods and what they send: probes, streams, requests through a CLB, churn and kills."""
