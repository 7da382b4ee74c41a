"""The declared state: the catalog, which host holds what (`placement`), when a schedule is due, and pushes."""
