"""``isthmus kubernetes``: the bridge to Kubernetes beside the controllers."""
