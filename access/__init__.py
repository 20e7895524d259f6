"""Who may do what: accounts with roles, sessions, and the trail of what they did."""
