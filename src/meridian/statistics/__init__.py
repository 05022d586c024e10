"""The planner's statistics: the cluster's, not an instance's (design section 9, "Planner")."""
