"""What is known of a server, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from greensock.proxy import HealthOptions, HealthStatistics, Standing
from greensock.proxy.upstream.health import LEAST_SHARE, TRIAL_SECONDS, Health


def health(**options):
    return Health(HealthOptions(**options))


def fail(mine, times, now):
    """Report failures; return what was said."""
    return [mine.failed(now) for _ in range(times)]


def eject(mine, now):
    """Report failures until it is ejected; return for how long."""
    while not mine.failed(now):
        pass
    return mine.ejected_until - now


def come_back(mine, now):
    assert mine.may_try(now)
    assert mine.succeeded(now)


# -- requests


@pytest.mark.parametrize("max_fails", [1, 2, 3, 1000])
def test_ejected_at_the_limit(max_fails):
    mine = health(max_fails=max_fails)
    assert fail(mine, max_fails, 1.0) == [False] * (max_fails - 1) + [True]
    assert (mine.is_up(1.0), mine.is_ejected, mine.ejected_until, mine.is_clear) == (False, True, 6.0, False)
    assert mine.statistics().ejections == 1


def test_no_limit():
    mine = health(max_fails=0)
    assert not any(fail(mine, 100, 1.0))
    assert mine.is_clear
    assert mine.statistics().failed == 100


def test_what_is_long_ago_does_not_count():
    mine = health(max_fails=3, fail_window=10.0)
    assert [mine.failed(at) for at in (0.0, 5.0, 10.1, 15.1, 15.2)] == [False, False, False, False, True]
    mine = health(max_fails=2, fail_window=10.0)
    assert [mine.failed(at) for at in (0.0, 10.0)] == [False, True]


@pytest.mark.parametrize(
    ("good", "ratio", "ejected"), [(27, 0.1, True), (28, 0.1, False), (10**6, 0.0, True), (1, 1.0, False)]
)
def test_a_busy_server_is_not_ejected_for_a_stray_few(good, ratio, ejected):
    mine = health(max_fails=3, fail_ratio=ratio)
    fail(mine, 2, 1.0)
    for _ in range(good):
        mine.succeeded(1.0)
    assert mine.failed(2.0) is ejected


def test_then_one_request_is_on_trial():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert not mine.is_up(4.999)
    assert not mine.may_try(4.999)
    assert mine.is_up(5.0)
    assert mine.may_try(5.0)
    assert mine.standing is Standing.TRYING
    assert not mine.is_up(5.0)
    assert not mine.may_try(5.0)
    assert mine.succeeded(6.0)
    assert mine.standing is Standing.UP
    assert mine.is_up(6.0)
    assert mine.is_clear
    assert mine.ejected_until is None


def test_a_trial_that_fails_is_a_longer_ejection():
    mine = health(max_fails=1, ejection_time=5.0, max_ejection=30.0)
    now, seconds = 0.0, [eject(mine, 0.0)]
    for _ in range(4):
        now = mine.ejected_until
        assert mine.may_try(now)
        assert mine.failed(now)
        seconds.append(mine.ejected_until - now)
    assert seconds == [5.0, 10.0, 20.0, 30.0, 30.0]


def test_a_trial_that_says_nothing_makes_room_for_another():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert mine.may_try(5.0)
    mine.abandoned(5.1)
    assert mine.may_try(5.1)
    assert not mine.may_try(5.1 + TRIAL_SECONDS - 0.1)
    assert mine.is_up(5.1 + TRIAL_SECONDS)
    assert mine.may_try(5.1 + TRIAL_SECONDS)
    assert not mine.may_try(5.1 + TRIAL_SECONDS)


def test_reports_of_older_requests_change_nothing():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert not any(fail(mine, 100, 1.0))
    assert not mine.succeeded(1.0)
    mine.abandoned(1.0)
    assert mine.ejected_until == 5.0
    assert mine.statistics().ejections == 1


REPORTS = ["succeeded", "failed", "abandoned"]


@pytest.mark.parametrize("report", REPORTS)
def test_only_who_is_on_trial_decides(report):
    """Not who was sent before the ejection, though he reports while another is on trial."""
    mine = health(max_fails=1)
    old = mine.spell
    eject(mine, 0.0)
    assert mine.may_try(5.0)
    trial = mine.spell
    assert not getattr(mine, report)(6.0, spell=old)
    assert (mine.standing, mine.ejected_until, mine.statistics().ejections) == (Standing.TRYING, 5.0, 1)
    assert not mine.may_try(6.0)
    assert mine.succeeded(7.0, spell=trial)
    assert mine.is_clear


@pytest.mark.parametrize("by_check", [False, True])
def test_who_was_sent_before_does_not_count_afterwards(by_check):
    """A server that hung for a while is not ejected once more by what times out later."""
    mine = health(max_fails=1, fall=1, rise=1)
    mine.check_passed(0.0)
    old = mine.spell
    if by_check:
        assert mine.check_failed(0.0)
        assert mine.check_passed(5.0)
    else:
        eject(mine, 0.0)
        come_back(mine, 5.0)
    for _ in range(10):
        assert not mine.failed(6.0, spell=old)
    assert mine.is_clear
    assert mine.statistics().failed == 10 + (not by_check)
    assert mine.failed(6.0, spell=mine.spell)


@pytest.mark.parametrize("early", [False, True])
def test_who_was_on_trial_before_another_was(early):
    """Each was sent after the ejection, and so has a say: the second began in panic, or as the first took long."""
    mine = health(max_fails=1)
    eject(mine, 0.0)
    first = 1.0 if early else 5.0
    assert mine.may_try(first, panic=True)
    spell = mine.spell
    assert mine.may_try(2.0 if early else first + TRIAL_SECONDS, panic=True)
    assert mine.succeeded(first + TRIAL_SECONDS, spell=spell)
    assert mine.is_clear


def test_staying_up_is_rewarded():
    mine = health(max_fails=1, ejection_time=5.0, fail_window=10.0)
    assert eject(mine, 0.0) == 5.0
    come_back(mine, 5.0)
    assert eject(mine, 6.0) == 10.0
    come_back(mine, 16.0)
    assert eject(mine, 17.0) == 20.0
    come_back(mine, 37.0)
    assert eject(mine, 37.0 + 20.0) == 20.0  # a stretch of 20 s: halved once, so not doubled
    come_back(mine, 77.0)
    assert eject(mine, 77.0 + 40.0) == 10.0
    come_back(mine, 127.0)
    assert eject(mine, 1e6) == 5.0


def test_panic_tries_before_the_time():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert mine.may_try(1.0, panic=True)
    assert mine.standing is Standing.TRYING
    assert not mine.failed(2.0)
    assert (mine.ejected_until, mine.standing) == (5.0, Standing.EJECTED)
    assert mine.may_try(3.0, panic=True)
    assert mine.may_try(3.0, panic=True)
    assert not mine.is_up(3.0)
    assert mine.succeeded(4.0)
    assert mine.is_up(4.0)


def test_no_longer_while_the_whole_group_is_out():
    mine = health(max_fails=1, ejection_time=5.0)
    assert eject(mine, 0.0) == 5.0
    now = 5.0
    for _ in range(5):
        assert mine.may_try(now)
        assert mine.failed(now + 1.0, others_up=False)
        assert mine.ejected_until == now + 6.0
        now += 6.0
    assert mine.may_try(now)
    assert mine.failed(now, others_up=True)
    assert mine.ejected_until == now + 10.0, "as if it had failed once before"


def test_a_trial_before_its_time_that_fails_behind_it():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert mine.may_try(4.0, panic=True)
    assert not mine.failed(6.0)
    assert mine.is_up(6.0), "the next one is the trial"


def test_an_ejection_that_ends_as_others_rise():
    mine = health(max_fails=1)
    mine.end_ejection(0.0)
    assert mine.is_clear
    eject(mine, 0.0)
    mine.end_ejection(1.0)
    assert mine.is_up(1.0)
    assert mine.may_try(1.0)
    assert mine.failed(1.0), "and that is a trial like any other"
    assert mine.ejected_until == 11.0
    assert mine.may_try(2.0, panic=True)
    mine.end_ejection(3.0)
    assert not mine.is_up(3.0), "one is under way"
    assert not mine.failed(4.0), "which was sent before"
    assert mine.is_up(4.0)
    mine.end_ejection(9.0)
    assert mine.ejected_until == 3.0, "never later"


def test_what_checks_found_does_not_end_as_others_rise():
    mine = health(fall=1)
    mine.check_failed(0.0)
    mine.end_ejection(1.0)
    assert not mine.is_up(1.0)


def test_panic_has_no_say_in_what_checks_found():
    mine = health(fall=1)
    mine.check_failed(0.0)
    assert not mine.may_try(1.0, panic=True)


# -- checks


def test_on_probation_at_first():
    mine = health(fall=3, rise=2)
    assert mine.is_up(0.0)
    assert mine.check_failed(0.0)
    assert (mine.is_up(0.0), mine.is_ejected, mine.standing) == (False, False, Standing.DOWN)
    assert not mine.is_up(1e9)


@pytest.mark.parametrize("fall", [1, 2, 3])
def test_falls_after_so_many_in_a_row(fall):
    mine = health(fall=fall)
    mine.check_passed(0.0)
    for _ in range(2):
        assert not any(mine.check_failed(1.0) for _ in range(fall - 1))
        mine.check_passed(2.0)
    assert [mine.check_failed(3.0) for _ in range(fall + 2)] == [False] * (fall - 1) + [True, False, False]


@pytest.mark.parametrize("rise", [1, 2, 3])
def test_rises_after_so_many_in_a_row(rise):
    mine = health(rise=rise, fall=1)
    mine.check_failed(0.0)
    for _ in range(2):
        assert not any(mine.check_passed(1.0) for _ in range(rise - 1))
        mine.check_failed(2.0)
    assert [mine.check_passed(3.0) for _ in range(rise + 2)] == [False] * (rise - 1) + [True, False, False]
    assert mine.is_clear


def test_a_passed_check_does_not_end_an_ejection():
    mine = health(max_fails=1)
    eject(mine, 0.0)
    assert not any(mine.check_passed(1.0) for _ in range(10))
    assert not mine.is_up(1.0)
    assert mine.is_up(5.0)


def test_what_checks_bring_back_is_not_ejected():
    mine = health(max_fails=1, rise=1, fall=1)
    eject(mine, 0.0)
    assert mine.check_failed(1.0)
    assert mine.ejected_until is None
    assert not mine.failed(1.0)
    assert not mine.succeeded(1.0)
    assert mine.check_passed(2.0)
    assert mine.is_up(2.0)


def test_a_check_that_fails_ends_a_trial():
    mine = health(max_fails=1, fall=1)
    eject(mine, 0.0)
    assert mine.may_try(5.0)
    assert mine.check_failed(5.0)
    assert not mine.succeeded(6.0)
    assert mine.standing is Standing.DOWN


def test_a_trial_that_succeeds_does_not_forget_failed_checks():
    mine = health(max_fails=1, fall=2)
    mine.check_passed(0.0)
    eject(mine, 0.0)
    mine.check_failed(1.0)
    come_back(mine, 5.0)
    assert mine.check_failed(6.0)


def test_what_was_before_does_not_count_when_checks_bring_it_back():
    mine = health(max_fails=3, rise=2, fall=2)
    fail(mine, 2, 0.0)
    mine.check_failed(0.0)
    mine.check_passed(1.0)
    assert mine.check_passed(2.0)
    assert fail(mine, 3, 2.0) == [False, False, True]
    assert [mine.check_failed(3.0) for _ in range(2)] == [False, True]


def test_what_is_counted():
    mine = health(max_fails=2, rise=1)
    mine.succeeded(0.0)
    fail(mine, 2, 0.0)
    assert mine.statistics() == HealthStatistics(Standing.EJECTED, 1, 2, 1, 5.0, 0, 0)
    mine.check_passed(1.0)
    mine.check_passed(1.0)
    for _ in range(3):
        mine.check_failed(1.0)
    assert mine.statistics() == HealthStatistics(Standing.DOWN, 1, 2, 1, None, 2, 3)
    mine.check_passed(1.0)
    assert mine.statistics() == HealthStatistics(Standing.UP, 1, 2, 1, None, 3, 3)


# -- slow start


def test_slow_start():
    mine = health(max_fails=1, slow_start=10.0)
    assert (mine.share(0.0), mine.is_clear) == (1.0, True)
    eject(mine, 0.0)
    assert mine.share(5.0) == 1.0  # the one on trial
    come_back(mine, 5.0)
    assert [mine.share(5.0 + after) for after in (0.0, 0.5, 1.0, 5.0, 9.0)] == [LEAST_SHARE] * 3 + [0.5, 0.9]
    assert not mine.is_clear
    assert mine.may_try(14.0)
    assert (mine.share(15.0), mine.is_clear) == (1.0, True)


def test_slow_start_after_checks():
    mine = health(rise=1, fall=1, slow_start=4.0)
    mine.check_failed(0.0)
    mine.check_passed(10.0)
    assert mine.share(12.0) == 0.5


# -- anything goes


class HealthMachine(RuleBasedStateMachine):
    """Whatever is reported, in whatever order: nothing is raised, and the states keep their promises."""

    @initialize(
        max_fails=st.integers(0, 3),
        slow_start=st.sampled_from([0.0, 3.0]),
        rise=st.integers(1, 3),
        fall=st.integers(1, 3),
        ratio=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def begin(self, max_fails, slow_start, rise, fall, ratio):
        self.options = HealthOptions(
            max_fails=max_fails, slow_start=slow_start, rise=rise, fall=fall, fail_ratio=ratio, max_ejection=40.0
        )
        self.mine, self.now = Health(self.options), 0.0

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 7.0, 100.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(panic=st.booleans())
    def request(self, panic):
        was_up = self.mine.is_up(self.now)
        may = self.mine.may_try(self.now, panic)
        assert may == (was_up or (panic and self.mine.standing is not Standing.DOWN))
        if was_up and self.mine.standing is Standing.TRYING:
            assert not self.mine.is_up(self.now), "one on trial at a time"

    @rule(report=st.sampled_from(REPORTS), ago=st.integers(1, 3))
    def report_of_old(self, report, ago):
        """What was sent before it was last taken out changes nothing but the counts."""
        mine = self.mine
        before = mine.standing, mine.is_clear, mine.ejected_until, mine.is_up(self.now), list(mine._fails)
        if mine.spell >= ago:
            assert not getattr(mine, report)(self.now, spell=mine.spell - ago)
            assert before == (
                *(mine.standing, mine.is_clear, mine.ejected_until, mine.is_up(self.now)),
                list(mine._fails),
            )

    @rule(report=st.sampled_from([*REPORTS, "check_passed", "check_failed", "end_ejection"]))
    def report(self, report):
        before, was_clear = self.mine.standing, self.mine.is_clear
        ejections = self.mine.statistics().ejections
        said = getattr(self.mine, report)(self.now)
        after = self.mine.standing
        expected = {
            "succeeded": before is Standing.TRYING,
            "failed": self.mine.statistics().ejections == ejections + 1,
            "abandoned": None,
            "end_ejection": None,
            "check_passed": before is Standing.DOWN and after is Standing.UP,
            "check_failed": before is not Standing.DOWN and after is Standing.DOWN,
        }[report]
        assert said == expected
        if was_clear and after is Standing.UP:
            assert self.mine.is_clear

    @invariant()
    def promises(self):
        mine, now = self.mine, self.now
        assert LEAST_SHARE <= mine.share(now) <= 1.0
        if mine.is_clear:
            assert mine.standing is Standing.UP
            assert mine.share(now) == 1.0
        if mine.is_ejected:
            assert mine.ejected_until - now <= self.options.max_ejection
            assert mine.is_up(now + self.options.max_ejection + TRIAL_SECONDS), "it is tried again some time"
        assert not (mine.standing is Standing.DOWN and mine.is_up(now + 1e9))


HealthMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHealth = HealthMachine.TestCase


# -- options


def test_the_defaults():
    """As the documents have them."""
    assert HealthOptions() == HealthOptions(
        max_fails=3,
        fail_window=10.0,
        fail_ratio=0.1,
        ejection_time=5.0,
        max_ejection=300.0,
        slow_start=0.0,
        path=None,
        interval=5.0,
        timeout=2.0,
        rise=2,
        fall=3,
        status="200-399",
        body=None,
        host=None,
    )


@pytest.mark.parametrize(
    ("status", "accepted", "refused"),
    [
        ("200-399", [200, 204, 301, 399], [400, 101, 503]),
        ("200", [200], [201, 199]),
        (" 200 - 204 , 404 ", [200, 204, 404], [205, 403]),
        ("200-999", [999, 500], [199]),
    ],
)
def test_which_statuses_pass(status, accepted, refused):
    options = HealthOptions(status=status)
    assert all(map(options.accepts, accepted))
    assert not any(map(options.accepts, refused))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_fails": -1}, "max_fails=-1: a whole number from 0 to 1000 expected"),
        ({"max_fails": 1001}, "max_fails=1001: a whole number from 0 to 1000 expected"),
        ({"max_fails": True}, "max_fails=True: a whole number from 0 to 1000 expected"),
        ({"fail_window": 0}, "fail_window=0: seconds, more than 0 expected"),
        ({"fail_ratio": 1.1}, "fail_ratio=1.1: a number from 0 to 1 expected"),
        ({"fail_ratio": float("nan")}, "fail_ratio=nan: a number from 0 to 1 expected"),
        ({"ejection_time": 0.0}, "ejection_time=0.0: seconds, more than 0 expected"),
        ({"max_ejection": 4.0}, "max_ejection=4.0: at least ejection_time, which is 5.0, expected"),
        ({"slow_start": -1}, "slow_start=-1: seconds, 0 or more expected"),
        ({"path": "health"}, "path='health': a path that begins with /, percent-encoded, or None expected"),
        ({"path": "/a b"}, "path='/a b': a path that begins with /, percent-encoded, or None expected"),
        ({"path": "/\r\nX: y"}, "path='/\\r\\nX: y': a path that begins with /, percent-encoded, or None expected"),
        ({"path": "/é"}, "path='/é': a path that begins with /, percent-encoded, or None expected"),
        ({"interval": 0}, "interval=0: seconds, more than 0 expected"),
        ({"timeout": None}, "timeout=None: seconds, more than 0 expected"),
        ({"rise": 0}, "rise=0: a whole number of at least 1 expected"),
        ({"fall": 0}, "fall=0: a whole number of at least 1 expected"),
        ({"body": ""}, "body='': a text of 1 to 1024 bytes, or None expected"),
        ({"body": "é" * 513}, f"body={'é' * 513!r}: a text of 1 to 1024 bytes, or None expected"),
        ({"host": "a b"}, "host='a b': a host, and a port if any, or None expected"),
        ({"host": ""}, "host='': a host, and a port if any, or None expected"),
        *(
            ({"status": status}, f'status={status!r}: statuses from 200 to 999, as "200-299,404" expected')
            for status in ("", "ok", "200-", "300-200", "199", "100-299", "1000", "200,,300", "200;300", 200, None)
        ),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError) as caught:
        HealthOptions(**options)
    assert str(caught.value) == text


def test_options_at_their_limits():
    HealthOptions(max_fails=1000, fail_ratio=1, body="é" * 512, host="[::1]:80", path="/%20?a=b", max_ejection=5)
    HealthOptions(max_fails=0, fail_ratio=0, body="x", slow_start=0)


def test_an_ejection_grows_without_end():
    mine = health(max_fails=1, ejection_time=1e-300, max_ejection=1e300)
    eject(mine, 0.0)
    for _ in range(3000):
        mine.may_try(mine.ejected_until)
        mine.failed(mine.ejected_until)
    assert mine.is_ejected
