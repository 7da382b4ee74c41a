"""A trial of servers over one PostgreSQL: real ones, which are killed and stopped under thousands of agents."""
