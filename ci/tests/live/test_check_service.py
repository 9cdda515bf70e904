"""The check that a fork keeps finds nothing to object to in either service."""

from live_service import ON_BOTH

from lab.chapter import NAMED
from lab.check_service import CHECKS, NEED_A_TOKEN, check_service


@ON_BOTH
def test_both_services_pass_every_check(url, store):
    found = check_service(url, NAMED[0])
    assert len(found) == len(CHECKS) - len(NEED_A_TOKEN)
    assert not {name: faults for name, faults in found.items() if faults}
