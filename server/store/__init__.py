"""The database: connections (`database`), one writer and a few readers on them (`engine`), and the tables.

Each thing that is stored has a file of statements: functions on a connection that take and return plain values. `rows`
has the types of rows.

- A batch statement, for `Store.write`, takes the items of many callers and returns one answer for each, in order. It
  executes a fixed number of SQL statements, however many items there are (see `batch`). The answer reaches the caller
  after the commit.
- A query, for `Store.read`, takes the arguments of one caller.

`ownership` ensures that only one server uses a store.
"""
