"""The parts of the server that handlers of the API use."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

from server.access.identity import Permission, User
from server.access.sessions import Sessions
from server.agents.hub import Hub
from server.changes.alerts import Alerts
from server.changes.enrolments import Enrolments
from server.changes.hosts import Hosts
from server.changes.listings import Listings
from server.changes.plan import Plans
from server.changes.previews import Previews
from server.changes.repositories import Repositories
from server.changes.restores import Restores
from server.changes.runs import Runs
from server.changes.schedules import Schedules
from server.fleet.placement import Placement
from server.jobs.active import ActiveAttempts
from server.jobs.dispatcher import Dispatcher
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.limits import Limits
from server.jobs.outcomes import Health
from server.observe.contents import ContentsReader
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader
from server.observe.stream import ChangeStream
from server.observe.survey import Surveyor
from server.store.engine import Store


class Services(NamedTuple):
    """The parts that handlers use: the first eight make changes, the others are read.

    `plans`: says what changes would do. `authorize`: returns if a user has a permission, and raises Forbidden if not.
    `catch_up`: brings what is read up to what other servers changed. Changes do so themselves.
    """

    schedules: Schedules
    repositories: Repositories
    hosts: Hosts
    runs: Runs
    restores: Restores
    listings: Listings
    previews: Previews
    enrolments: Enrolments
    alerts: Alerts
    plans: Plans
    store: Store
    placement: Placement
    hub: Hub
    dispatcher: Dispatcher
    active: ActiveAttempts
    repository_name: Callable[[str], str]
    repository_limit: Callable[[str], ConcurrencyLimit]
    limits: Limits
    health: Health
    coverage: CoverageReader
    contents: ContentsReader
    controllers: Controllers
    surveyor: Surveyor
    stream: ChangeStream
    stopping: Callable[[], bool]
    authorize: Callable[[User, Permission], Awaitable[None]]
    catch_up: Callable[[], Awaitable[None]]
    sessions: Sessions
    clock: Callable[[], datetime]
