"""What the engine is measured against: the ways people grade such studies today, and the limits of the machine."""
