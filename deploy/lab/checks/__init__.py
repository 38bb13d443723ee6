"""What the lab proves, with counted packets and real kernel tables."""
