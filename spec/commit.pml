/*
 * Commit over two adjudicators with expiring promises and take-over (design
 * sections 4, 5 and 6), as one nondeterministic loop: every interleaving of
 * messages that are late, lost or doubled is a path of it.
 *
 * Key 0 belongs to the leader L, key 1 to the voter V.  Transaction 0 writes
 * both keys; transaction 1 writes both, or only key 0, or only key 1.
 * Each has one attempt.  Time is true time (the clock's interval is a point);
 * what error bounds add is waiting, which any delay here already covers.
 *
 * -DBROKEN=n leaves out one rule; README.md lists them.  All must be caught.
 */
#ifndef BROKEN
#define BROKEN 0
#endif
#ifndef NOW_MAX
#define NOW_MAX 4
#endif
#define TXNS 2
#define HOLD 1					/* length of a promise */
#define LEASE 2					/* length of a lease */
#define NONE 9

#define MAX(a, b) ((a) > (b) -> (a) : (b))

byte now = 1;
byte takeovers_l = 1, takeovers_v = 1;	/* left */
byte beats_l = 1, beats_v = 1;	/* left */

/* transactions */
bool started[TXNS], cross[TXNS], key0[TXNS], key1[TXNS];
bool voted[TXNS], ended[TXNS];
byte tau_start[TXNS], tau_commit[TXNS];	/* 0: not committed (durable) */
byte vote_a[TXNS], vote_max[TXNS];

/* leader: its conflict window of key 0, last tau, floor, lease, append in flight */
byte w0, last_l, floor_l, lease_l = LEASE, heartbeat_l;
byte flight = NONE, flight_tau;
bool flight_zombie;				/* sent by an owner that has been fenced */

/* voter: the same for key 1, and its hold */
byte w1, last_v, floor_v, lease_v = LEASE, heartbeat_v;
byte hold = NONE, hold_max;

/* First committer wins: the later of two writers of a key began after the earlier. */
inline check_isolation(t)
{
	byte u;
	for (u : 0 .. TXNS - 1) {
		if
		:: u != t && tau_commit[u] != 0 &&
		   ((key0[t] && key0[u]) || (key1[t] && key1[u])) ->
			assert(tau_commit[u] != tau_commit[t]);
			assert(!(tau_start[t] < tau_commit[u] && tau_commit[u] < tau_commit[t]));
			assert(!(tau_start[u] < tau_commit[t] && tau_commit[t] < tau_commit[u]))
		:: else
		fi
	}
	u = 0
}

inline start(t)
{
	started[t] = true;
	tau_start[t] = now
}

/* V: prepare for a cross transaction (5.1, 5.3). */
inline prepare(t)
{
	if
	:: (w1 > tau_start[t] || tau_start[t] < floor_v) -> ended[t] = true
	:: else ->
		hold = t;
		hold_max = now + HOLD;
		if
		:: hold_max > lease_v && BROKEN != 4 -> hold_max = lease_v
		:: else
		fi;
		vote_a[t] = MAX(now, last_v + 1);
		vote_max[t] = hold_max;
		voted[t] = true
	fi
}

/* V: the hold ends and nobody said how (5.4). */
inline expire()
{
	if
	:: BROKEN != 1 -> w1 = MAX(w1, hold_max)
	:: else
	fi;
	last_v = MAX(last_v, hold_max);
	hold = NONE;
	hold_max = 0
}

/* V: the outcome arrives while the hold stands. */
inline learn()
{
	if
	:: tau_commit[hold] != 0 ->
		w1 = MAX(w1, tau_commit[hold]);
		last_v = MAX(last_v, tau_commit[hold])
	:: else						/* aborted for good */
	fi;
	hold = NONE;
	hold_max = 0
}

/* V: a transaction of key 1 only; its append is atomic here, L shows the other case. */
inline commit_v(t)
{
	byte tau;
	if
	:: (w1 > tau_start[t] || tau_start[t] < floor_v) -> ended[t] = true
	:: else ->
		tau = MAX(MAX(now, last_v + 1), MAX(tau_start[t], w1) + 1);
		if
		:: tau <= lease_v ->
			assert(tau > heartbeat_v);
			tau_commit[t] = tau;
			w1 = tau;
			last_v = tau;
			ended[t] = true;
			check_isolation(t)
		:: else
		fi
	fi;
	tau = 0
}

/* L: decide and send the append (4.4, 5.3). */
inline append(t)
{
	byte tau;
	if
	:: ((w0 > tau_start[t] && !(BROKEN == 6 && w0 > now)) || tau_start[t] < floor_l) ->
		ended[t] = true
	:: else ->
		tau = MAX(MAX(now, last_l + 1), MAX(tau_start[t], w0) + 1);
		if
		:: cross[t] -> tau = MAX(tau, vote_a[t])
		:: else
		fi;
		if
		:: tau <= lease_l && (!cross[t] || tau <= vote_max[t] || BROKEN == 2) ->
			flight = t;
			flight_tau = tau;
			flight_zombie = false;
			w0 = tau;
			last_l = tau
		:: else -> ended[t] = true
		fi
	fi;
	tau = 0
}

inline durable()
{
	assert(flight_tau > heartbeat_l);
	tau_commit[flight] = flight_tau;
	ended[flight] = true;
	check_isolation(flight);
	vote_a[flight] = 0;
	vote_max[flight] = 0;
	flight = NONE;
	flight_tau = 0
}

/* A heartbeat says: every commit at or below it is durable (4.6). */
inline beat_l()
{
	byte top = MAX(now, last_l);
	if
	:: flight != NONE && !flight_zombie && BROKEN != 3 -> top = MAX(heartbeat_l, flight_tau - 1)
	:: else
	fi;
	if
	:: top > lease_l -> top = lease_l
	:: else
	fi;
	heartbeat_l = MAX(heartbeat_l, top);
	last_l = MAX(last_l, heartbeat_l);
	top = 0
}

inline beat_v()
{
	byte top = MAX(now, last_v);
	if
	:: top > lease_v -> top = lease_v
	:: else
	fi;
	heartbeat_v = MAX(heartbeat_v, top);
	last_v = MAX(last_v, heartbeat_v);
	top = 0
}

/* L is taken over: the fence decides what happened to the append in flight (5.7, 6.5). */
inline take_over_l()
{
	takeovers_l--;
	if
	:: flight != NONE && !flight_zombie ->
		if
		:: durable()
		:: BROKEN == 5 -> flight_zombie = true
		:: BROKEN != 5 -> ended[flight] = true; flight = NONE; flight_tau = 0
		fi
	:: else
	fi;
	w0 = 0;						/* the window is gone: only the floor protects */
	if
	:: BROKEN != 7 -> floor_l = lease_l
	:: else
	fi;
	last_l = lease_l;
	lease_l = lease_l + LEASE
}

inline take_over_v()
{
	takeovers_v--;
	hold = NONE;
	w1 = 0;
	if
	:: BROKEN != 8 -> floor_v = lease_v
	:: else
	fi;
	last_v = lease_v;
	lease_v = lease_v + LEASE
}

active proctype world()
{
	byte t;
	key0[0] = true; key1[0] = true; cross[0] = true;
	if
	:: key0[1] = true; key1[1] = true; cross[1] = true
	:: key0[1] = true
	:: key1[1] = true
	fi;

	do
	:: atomic { now < NOW_MAX -> now++ }
	:: atomic { select(t : 0 .. TXNS - 1);
		if
		:: !started[t] -> start(t)
		:: else
		fi; t = 0 }
	:: atomic { hold == NONE -> select(t : 0 .. TXNS - 1);
		if
		:: started[t] && cross[t] && !voted[t] && !ended[t] -> prepare(t)
		:: else
		fi; t = 0 }
	:: atomic { hold != NONE && now > hold_max -> expire() }
	:: atomic { hold != NONE && ended[hold] -> learn() }
	:: atomic { hold == NONE && started[1] && !key0[1] && !ended[1] -> commit_v(1) }
	:: atomic { flight == NONE -> select(t : 0 .. TXNS - 1);
		if
		:: started[t] && key0[t] && !ended[t] && (voted[t] || !cross[t]) -> append(t)
		:: else
		fi; t = 0 }
	:: atomic { flight != NONE -> durable() }
	:: atomic { beats_l > 0 -> beats_l--; beat_l() }
	:: atomic { beats_v > 0 -> beats_v--; beat_v() }
	:: atomic { lease_l <= now -> lease_l = now + LEASE }
	:: atomic { lease_v <= now -> lease_v = now + LEASE }
	:: atomic { takeovers_l > 0 -> take_over_l() }
	:: atomic { takeovers_v > 0 -> take_over_v() }
	:: atomic { now == NOW_MAX && ended[0] && ended[1] -> break }
	od
}
