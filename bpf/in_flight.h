/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How many API requests that we follow have no answer yet: what is looked at only then costs nothing else. */
#ifndef OBSERVE_IN_FLIGHT_H
#define OBSERVE_IN_FLIGHT_H

BPF_ARRAY(requests_in_flight, s64, 1);

static __always_inline void change_in_flight(s64 by)
{
	u32 zero = 0;
	s64 *requests = requests_in_flight.lookup(&zero);

	if (requests)
		__sync_fetch_and_add(requests, by);
}

static __always_inline bool any_in_flight(void)
{
	u32 zero = 0;
	s64 *requests = requests_in_flight.lookup(&zero);

	return requests && *requests > 0;
}

#endif
