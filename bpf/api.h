/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The boundaries of an operation: dockerd has read "POST …/containers/create" or "…/start" from an API
 * connection, and it answers. Only the request's target and the response's status leave the kernel.
 */
#ifndef OBSERVE_API_H
#define OBSERVE_API_H

#include "in_flight.h"

#define CONNECTIONS 4096
#define TARGET_BYTES 256

struct connection {
	u8 in_request; /* a request that we follow was read and not yet answered */
	u8 has_p;      /* net/http's background read took the first byte, 'P', by itself */
};

/* Key: file descriptor of dockerd; user space adds those that were open before. */
BPF_HASH(connections, u32, struct connection, CONNECTIONS);

struct text {
	/* Found by loops; kept here because the verifier forgets what it knew of a value that went through memory. */
	u32 path_end;
	u32 target_end;
	char bytes[2 * TARGET_BYTES]; /* twice: a masked index plus a bounded read stays inside */
};
BPF_PERCPU_ARRAY(api_text, struct text, 1);

#define barrier() asm volatile("" ::: "memory")
#define AT(text, index) ((text)->bytes[(index) & (TARGET_BYTES - 1)])

/* Where the target of a followed request begins in text, or 0; text->target_end is its end. from: at "OST ". */
static __always_inline u32 followed_target(struct text *text, u32 from)
{
	u32 target = from + 4, at = target + 1, end;

	if (AT(text, from) != 'O' || AT(text, from + 1) != 'S' || AT(text, from + 2) != 'T' ||
	    AT(text, from + 3) != ' ' || AT(text, target) != '/')
		return 0;
	/* One comparison an iteration and nothing kept in a register: cheap for the verifier. */
	text->target_end = TARGET_BYTES - 1;
	for (u32 i = 5; i < TARGET_BYTES; i++) {
		if ((u8)text->bytes[i] <= ' ') { /* or the zero behind what was read: old memory follows it */
			text->target_end = i;
			barrier();
			break;
		}
	}
	barrier();
	text->path_end = text->target_end;
	for (u32 i = 5; i < TARGET_BYTES; i++) {
		if (text->bytes[i] == '?') {
			if (i < text->path_end)
				text->path_end = i;
			barrier();
			break;
		}
	}
	barrier();
	if (AT(text, at) == 'v') { /* "/v1.41": a version is four or five characters long */
		at += 5;
		if (AT(text, at) != '/')
			at++;
		if (AT(text, at) != '/')
			at -= 2;
		if (AT(text, at) != '/')
			return 0;
		at++;
	}
	if (AT(text, at) != 'c' || AT(text, at + 1) != 'o' || AT(text, at + 2) != 'n' || AT(text, at + 3) != 't' ||
	    AT(text, at + 4) != 'a' || AT(text, at + 5) != 'i' || AT(text, at + 6) != 'n' || AT(text, at + 7) != 'e' ||
	    AT(text, at + 8) != 'r' || AT(text, at + 9) != 's' || AT(text, at + 10) != '/')
		return 0;
	at += 11;
	end = text->path_end;
	if (end == at + 6 && AT(text, at) == 'c' && AT(text, at + 1) == 'r' && AT(text, at + 2) == 'e' &&
	    AT(text, at + 3) == 'a' && AT(text, at + 4) == 't' && AT(text, at + 5) == 'e')
		return target;
	if (end > at + 6 && AT(text, end - 6) == '/' && AT(text, end - 5) == 's' && AT(text, end - 4) == 't' &&
	    AT(text, end - 3) == 'a' && AT(text, end - 2) == 'r' && AT(text, end - 1) == 't')
		return target;
	return 0;
}

static __always_inline void api_accepted(u32 fd)
{
	struct connection connection = {};

	if (connections.update(&fd, &connection))
		count(COUNTER_LINEAGE);
}

static __always_inline void api_closed(u32 fd)
{
	struct connection *connection = connections.lookup(&fd);

	if (connection && connection->in_request)
		change_in_flight(-1);
	connections.delete(&fd);
}

/* dockerd has read bytes from fd into buffer. */
static __always_inline void api_read(u32 fd, const char *buffer, s64 bytes, u64 now_ns, u64 goroutine)
{
	struct connection *connection = connections.lookup(&fd);
	struct record *record;
	struct text *text;
	u32 zero = 0, target, end, length = bytes;

	if (!connection || connection->in_request || bytes <= 0)
		return;
	text = api_text.lookup(&zero);
	if (!text)
		return;
	if (bytes > TARGET_BYTES - 1)
		length = TARGET_BYTES - 1;
	length &= TARGET_BYTES - 1;
	if (read_user(text->bytes, length, buffer))
		return;
	AT(text, length) = 0;
	if (bytes == 1 && AT(text, 0) == 'P') {
		connection->has_p = 1;
		return;
	}
	if (!connection->has_p && AT(text, 0) != 'P')
		return;
	target = followed_target(text, connection->has_p ? 0 : 1);
	connection->has_p = 0;
	if (!target)
		return;
	connection->in_request = 1;
	change_in_flight(1);
	record = reserve(KIND_API_REQUEST, now_ns);
	if (!record)
		return;
	record->fd = fd;
	record->goroutine = goroutine;
	end = text->target_end;
	if (end >= TARGET_BYTES - 1)
		record->marks |= MARK_TRUNCATED;
	end = (end - target) & (TARGET_BYTES - 1);
	bpf_probe_read_kernel(record->path, end, &text->bytes[target & (TARGET_BYTES - 1)]);
	record->path_bytes = end;
	submit(record);
}

/*
 * Status of a response that begins in buffer, or 0: "HTTP/1.1 201". The request ends here, not when the write
 * returns: by then the client may have read the answer, and dockerd the first byte of the next request.
 */
static __always_inline u32 api_status(u32 fd, const char *buffer)
{
	struct connection *connection = connections.lookup(&fd);
	char line[12];

	if (!connection || !connection->in_request || read_user(line, sizeof(line), buffer))
		return 0;
	if (line[0] != 'H' || line[1] != 'T' || line[2] != 'T' || line[3] != 'P' || line[4] != '/' || line[8] != ' ')
		return 0;
	if (line[9] < '2' || line[9] > '9') /* 1xx announces the response, it is none */
		return 0;
	connection->in_request = 0;
	return (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
}

static __always_inline void api_answered(u32 fd, u32 status, u64 time_ns, u64 duration_ns, u64 goroutine)
{
	struct record *record = reserve(KIND_API_RESPONSE, time_ns);

	change_in_flight(-1);
	if (!record)
		return;
	record->duration_ns = duration_ns;
	record->goroutine = goroutine;
	record->ret = status;
	record->fd = fd;
	submit(record);
}

#endif
