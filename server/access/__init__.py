"""Who is calling, and what opens repositories: tokens, keys of hosts, TokenReview, and the vault of credentials."""
