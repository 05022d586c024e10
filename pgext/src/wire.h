/*
 * wire.h
 *	  The gateway connection of this backend, beyond what meridian.h offers to
 *	  readers: what COMMIT needs, where an error must not be thrown.
 */
#ifndef MERIDIAN_WIRE_H
#define MERIDIAN_WIRE_H

#include "meridian.h"

#include "portability/instr_time.h"

#define MER_NO_TIMEOUT (-1)

/* What mer_wire_wait has waited so far. */
extern instr_time mer_wire_waited;

/*
 * Send and wait without throwing: no interrupts are served (the caller holds
 * them), an ERROR answer is returned as any other, a lost socket as MER_LOST.
 * Only the postmaster's death and lack of memory leave otherwise.  A request
 * that could not be sent whole is MER_UNSENT: nobody has acted on it.
 */
extern MerStatus mer_wire_try_call(StringInfo buf, uint32 id, int timeout_ms, MerReply *reply);
extern MerStatus mer_wire_try_send(StringInfo buf, int timeout_ms);
extern MerStatus mer_wire_try_wait(uint32 id, int timeout_ms, MerReply *reply);

/*
 * Close what is left of the socket and connect anew, even inside a transaction
 * that lost it: for STATUS after a COMMIT without answer.
 */
extern MerStatus mer_wire_try_reconnect(int timeout_ms);

/* Connects if it is not. */
extern void mer_wire_ensure(void);

/* WELCOME's profile and limits, behind its type and id (welcome.c). */
extern void mer_welcome_read(MpReader *r);

/* Throw an ERROR answer with its SQLSTATE, message, detail and hint. */
pg_noreturn extern void mer_wire_raise(MerReply *reply);

/* The SQLSTATE (packed) of an ERROR answer; the reply can still be raised. */
extern int	mer_wire_sqlstate(const MerReply *reply);
extern int	mer_take_sqlstate(MpReader *r);

extern char *mer_gateway_socket;	/* GUC meridian.gateway_socket */
extern int	mer_instance_id;	/* GUC meridian.instance_id */

/*
 * Like mer_wire_wait for a request whose effect must not be lost sight of: an
 * error thrown while waiting cancels it, and late is given the answer that
 * comes nevertheless.  It must not throw.  meanwhile, if there is one, is called
 * each time the wait has gone on for so long.
 */
typedef struct MerSettle
{
	void		(*late) (const MerReply *reply, const void *arg);
	const void *arg;
	void		(*meanwhile) (void);
	int			each_ms;
} MerSettle;

extern MerReply mer_wire_wait_settled(uint32 id, const MerSettle *settle);

/*
 * While pinned, the session has something that lives as long as the connection
 * to the gateway: no other one is made, and losing it is FATAL.
 */
extern void mer_wire_pin(bool pin);
extern void mer_wire_check_pin(void);
extern void mer_wire_drop(void);

#endif							/* MERIDIAN_WIRE_H */
