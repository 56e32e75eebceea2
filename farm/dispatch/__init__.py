"""Which job goes to which worker, and when: the policy, the loop that applies it, the leases, and the broker."""
