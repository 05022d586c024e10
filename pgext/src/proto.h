/*
 * proto.h
 *	  msgpack and the gateway protocol, without the server.
 *
 * The same code is linked into the extension (wire.c supplies the functions)
 * and into a small library that tests drive from Python.
 */
#ifndef MERIDIAN_PROTO_H
#define MERIDIAN_PROTO_H

#ifdef MER_PROTO_LIB
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t int64;
typedef int32_t int32;
typedef int16_t int16;
typedef int8_t int8;
typedef uint64_t uint64;
typedef uint32_t uint32;
typedef uint16_t uint16;
typedef uint8_t uint8;

typedef struct StringInfoData
{
	char	   *data;
	int			len;
	int			maxlen;
	int			cursor;
} StringInfoData;

typedef StringInfoData *StringInfo;

extern void enlargeStringInfo(StringInfo buf, int needed);
#define pg_noreturn _Noreturn
#define likely(x) __builtin_expect((x) != 0, 1)
#define unlikely(x) __builtin_expect((x) != 0, 0)
#define Assert(x) ((void) 0)
#else
#include "postgres.h"
#include "lib/stringinfo.h"
#endif

/* ---------- msgpack (msgpack.c) ---------- */

typedef struct MpReader
{
	const char *p;
	const char *end;
} MpReader;

extern void mp_put_array(StringInfo buf, uint32 n);
extern void mp_put_map(StringInfo buf, uint32 n);
extern void mp_put_int(StringInfo buf, int64 v);
extern void mp_put_bool(StringInfo buf, bool v);
extern void mp_put_bin(StringInfo buf, const void *data, uint32 len);
extern void mp_put_str(StringInfo buf, const char *data, uint32 len);
extern void mp_put_nil(StringInfo buf);

/* Room for len bytes of bin that the caller fills in; valid until the next put. */
extern char *mp_put_bin_space(StringInfo buf, uint32 len);

/* Readers report malformed input through mp_malformed; pointers alias the input. */
extern uint32 mp_get_array(MpReader *r);
extern uint32 mp_get_map(MpReader *r);
extern int64 mp_get_int(MpReader *r);
extern bool mp_get_bool(MpReader *r);
extern bool mp_try_nil(MpReader *r);	/* consumes a nil if one is next */
extern const char *mp_get_bytes(MpReader *r, uint32 *len);	/* bin or str */
extern void mp_skip(MpReader *r);

/* ereport(ERROR, 08P01) in the server; a longjmp in the library. */
pg_noreturn extern void mp_malformed(const char *why);

/* ---------- protocol (proto.c) ---------- */

#define MER_PROTOCOL_VERSION 1
#define MER_FRAME_SIZE_BYTES (16 * 1024 * 1024)

#define MER_HELLO 1
#define MER_BEGIN 2
#define MER_GET 3
#define MER_SCAN 4
#define MER_COMMIT 5
#define MER_PART 6
#define MER_STATUS 7
#define MER_LEASE 8
#define MER_STATS 9
#define MER_SAMPLE 10
#define MER_CANCEL 11
#define MER_SEQUENCE 12
#define MER_SETVAL 13
#define MER_PEEKSEQ 14
#define MER_ADVISORY 17
#define MER_GATE 16
#define MER_ADMIN 20

#define MER_RESULT 64
#define MER_COMMITTED 65
#define MER_LEASED 66
#define MER_OUTCOME 67
#define MER_WELCOME 68
#define MER_VALUES 69
#define MER_ERROR 127

#define MER_IO_READ 1
#define MER_IO_WRITE 2

typedef enum MerStatus
{
	MER_OK = 0,
	MER_LOST,					/* no socket, or it ended or broke */
	MER_TIMEOUT,
	MER_VIOLATION,				/* what arrived is not the protocol; the socket is closed */
	MER_TOO_MANY,				/* more requests under way than MER_PENDING_MAX */
	MER_TOO_LARGE,				/* a request above MER_FRAME_SIZE_BYTES; nothing was sent */
	MER_UNSENT					/* the request did not get out whole: it has no effect */
} MerStatus;

/*
 * What the protocol needs from its surroundings.  connect returns true once a
 * stream is there.  send and recv return bytes moved, 0 if they would block,
 * -1 if the stream is gone (recv: or at its end).  wait returns what is ready,
 * or 0 after timeout_ms (-1: no limit); it may leave by longjmp.  alloc may
 * leave by longjmp too.
 */
typedef struct MerProtoOps
{
	bool		(*connect) (void *arg);
	void		(*close) (void *arg);
	int64		(*send) (void *arg, const char *data, size_t len);
	int64		(*recv) (void *arg, char *data, size_t len);
	int			(*wait) (void *arg, int events, int64 timeout_ms);
	int64		(*now_ms) (void *arg);
	void	   *(*alloc) (void *arg, size_t len);	/* for the caller of mer_proto_wait */
	void	   *(*keep) (void *arg, size_t len);	/* outlives the caller */
	void		(*release) (void *arg, void *chunk);
} MerProtoOps;

#define MER_PENDING_MAX 256		/* as CONNECTION_REQUESTS of limits.py */
#define MER_KEPT_MAX_BYTES (64 * 1024 * 1024)
#define MER_RECV_BUFFER_BYTES (64 * 1024)

typedef struct MerPending
{
	uint32		id;
	bool		quiet;			/* answered only if refused (PART) */
	char	   *body;			/* kept answer, or NULL while none */
	uint32		len;
} MerPending;

typedef struct MerProto
{
	const MerProtoOps *ops;
	void	   *arg;
	bool		connected;
	bool		sending;		/* a frame is out in part, and its sender may have left */
	uint32		next_id;
	int			npending;
	MerPending	pending[MER_PENDING_MAX];
	size_t		kept_bytes;
	size_t		skip_bytes;		/* rest of a frame nobody wants */
	char	   *partial;		/* a large frame being received */
	uint32		partial_id;
	uint32		partial_len;
	uint32		partial_got;
	bool		partial_kept;	/* allocated by keep, else by alloc */
	const char *why;			/* of the last MER_LOST or MER_VIOLATION */
	uint32		buf_start;		/* unread bytes of buf are [buf_start, buf_end) */
	uint32		buf_end;
	char		buf[MER_RECV_BUFFER_BYTES];
} MerProto;

typedef struct MerAnswer
{
	int			type;
	uint32		len;
	char	   *body;			/* the whole msgpack body; release it with ops->release */
	MpReader	rest;			/* after [type, id] */
} MerAnswer;

extern void mer_proto_init(MerProto *p, const MerProtoOps *ops, void *arg);
extern uint32 mer_proto_next_id(MerProto *p);
extern MerStatus mer_proto_connect(MerProto *p);
extern void mer_proto_close(MerProto *p);

/* Frame header and [type, id]; mer_proto_send fills in the length. */
extern void mer_proto_begin(StringInfo buf, int type, uint32 id, int n_fields);

/* Does the stream still stand, as far as one can tell without waiting? */
extern bool mer_proto_alive(MerProto *p);
extern MerStatus mer_proto_send(MerProto *p, StringInfo buf, int64 deadline_ms);
extern MerStatus mer_proto_wait(MerProto *p, uint32 id, int64 deadline_ms, MerAnswer *answer);

/* Is a quiet request refused?  Its ERROR answer, once. */
extern bool mer_proto_refused(MerProto *p, MerAnswer *answer);

/* Give up on one request (a CANCEL is sent if that needs no wait), or on all. */
extern void mer_proto_forget(MerProto *p, uint32 id);
extern void mer_proto_forget_all(MerProto *p);

/* Ask for an early end; the answer is still to be waited for. */
extern void mer_proto_cancel(MerProto *p, uint32 id);

#define MER_NO_DEADLINE INT64_C(0x7fffffffffffffff)

#endif							/* MERIDIAN_PROTO_H */
