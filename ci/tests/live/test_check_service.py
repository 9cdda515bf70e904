"""The check that a fork keeps finds nothing to object to in either service."""

from live_service import ON_BOTH

from lab import check_service
from lab.chapter import NAMED


@ON_BOTH
def test_both_services_pass_every_check(url, store, monkeypatch):
    quick = [check for check in check_service.CHECKS if check not in check_service.SLOW]
    monkeypatch.setattr(check_service, "CHECKS", quick)  # test_limits.py waits for a slow body
    found = check_service.check_service(url, NAMED[0])
    assert len(found) == len(quick) - len(check_service.NEED_A_TOKEN)
    assert not {name: faults for name, faults in found.items() if faults}
