"""Hand trials to processes: on a Ray of this computer, or on a cluster."""
