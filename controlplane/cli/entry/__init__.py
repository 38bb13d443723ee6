"""``isthmus entry``: who from outside of the overlay may reach pods."""
