"""Real software: what it keeps of its promises when it is killed, and when the power is cut."""
