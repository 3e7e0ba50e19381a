"""Flow -> the message that ctnetlink would send, for tests without a kernel that has it."""

import struct
from socket import AF_INET

from conntrackd.flow import ABSENT, EventType, Flow, Protocol, Reason
from conntrackd.netlink import constants as nl


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", nl.NLA_HDRLEN + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *inner: bytes) -> bytes:
    return attribute(kind | nl.NLA_F_NESTED, b"".join(inner))


def build_message(flow: Flow) -> bytes:
    """What the event carries, in the kernel's order; what is ABSENT, or a mark or zone of 0, is left out."""
    parts = [
        build_tuple(nl.CTA_TUPLE_ORIG, flow, flow.src, flow.dst, (flow.sport, flow.dport)),
        build_tuple(
            nl.CTA_TUPLE_REPLY, flow, flow.reply_src, flow.reply_dst, (flow.reply_sport, flow.reply_dport)
        ),
        attribute(nl.CTA_ID, struct.pack("!I", flow.id)),
        attribute(nl.CTA_STATUS, struct.pack("!I", flow.status)),
    ]
    if flow.zone:
        parts.append(attribute(nl.CTA_ZONE, struct.pack("!H", flow.zone)))
    for kind, packets, octets in (
        (nl.CTA_COUNTERS_ORIG, flow.orig_packets, flow.orig_bytes),
        (nl.CTA_COUNTERS_REPLY, flow.reply_packets, flow.reply_bytes),
    ):
        inner = [
            attribute(number, struct.pack("!Q", value))
            for number, value in ((nl.CTA_COUNTERS_PACKETS, packets), (nl.CTA_COUNTERS_BYTES, octets))
            if value != ABSENT
        ]
        parts += [nest(kind, *inner)] if inner else []
    if flow.state != ABSENT:
        state = attribute(nl.CTA_PROTOINFO_TCP_STATE, bytes([flow.state]))
        parts.append(nest(nl.CTA_PROTOINFO, nest(nl.CTA_PROTOINFO_TCP, state)))
    if flow.reason == Reason.CLOSED:  # what was left of its time
        parts.append(attribute(nl.CTA_TIMEOUT, struct.pack("!I", 10)))
    if flow.helper:
        parts.append(nest(nl.CTA_HELP, attribute(nl.CTA_HELP_NAME, flow.helper + b"\0")))
    if flow.secctx:
        parts.append(nest(nl.CTA_SECCTX, attribute(nl.CTA_SECCTX_NAME, flow.secctx + b"\0")))
    if flow.labels:
        parts.append(attribute(nl.CTA_LABELS, flow.labels))
    if flow.master_src:
        parts.append(build_master(flow))
    if flow.mark:
        parts.append(attribute(nl.CTA_MARK, struct.pack("!I", flow.mark)))
    times = [
        attribute(kind, struct.pack("!Q", value))
        for kind, value in ((nl.CTA_TIMESTAMP_START, flow.start), (nl.CTA_TIMESTAMP_STOP, flow.stop))
        if value
    ]
    parts += [nest(nl.CTA_TIMESTAMP, *times)] if times else []
    parts.append(attribute(nl.CTA_TIMESTAMP_EVENT, struct.pack("!Q", flow.time)))
    message_type, flags = (
        (nl.IPCTNL_MSG_CT_DELETE, 0)
        if flow.type == EventType.DESTROY
        else (nl.IPCTNL_MSG_CT_NEW, nl.NLM_F_CREATE | nl.NLM_F_EXCL if flow.type == EventType.NEW else 0)
    )
    body = struct.pack("=BBH", flow.family, nl.NFNETLINK_V0, 0) + b"".join(parts)
    kind = nl.NFNL_SUBSYS_CTNETLINK << 8 | message_type
    return struct.pack("=IHHII", nl.NLMSG_HDRLEN + len(body), kind, flags, 0, 0) + body


def build_master(flow: Flow) -> bytes:
    return nest(
        nl.CTA_TUPLE_MASTER,
        build_addresses(flow, flow.master_src, flow.master_dst),
        nest(
            nl.CTA_TUPLE_PROTO,
            attribute(nl.CTA_PROTO_NUM, bytes([flow.master_protocol])),
            attribute(nl.CTA_PROTO_SRC_PORT, struct.pack("!H", flow.master_sport)),
            attribute(nl.CTA_PROTO_DST_PORT, struct.pack("!H", flow.master_dport)),
        ),
    )


def build_addresses(flow: Flow, src: bytes, dst: bytes) -> bytes:
    ends = (
        (nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST)
        if flow.family == AF_INET
        else (nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST)
    )
    return nest(nl.CTA_TUPLE_IP, attribute(ends[0], src), attribute(ends[1], dst))


def build_tuple(kind: int, flow: Flow, src: bytes, dst: bytes, ports: tuple[int, int]) -> bytes:
    proto = [attribute(nl.CTA_PROTO_NUM, bytes([flow.protocol]))]
    is_v6 = flow.protocol == Protocol.ICMPV6
    icmp_id = flow.icmp_id if kind == nl.CTA_TUPLE_ORIG else flow.reply_icmp_id
    if icmp_id != ABSENT:
        proto.append(
            attribute(nl.CTA_PROTO_ICMPV6_ID if is_v6 else nl.CTA_PROTO_ICMP_ID, struct.pack("!H", icmp_id))
        )
    if flow.icmp_type != ABSENT:
        kinds = (nl.CTA_PROTO_ICMPV6_TYPE, nl.CTA_PROTO_ICMPV6_CODE)
        kinds = kinds if is_v6 else (nl.CTA_PROTO_ICMP_TYPE, nl.CTA_PROTO_ICMP_CODE)
        proto.append(attribute(kinds[0], bytes([flow.icmp_type])))
        proto.append(attribute(kinds[1], bytes([flow.icmp_code])))
    proto += [
        attribute(number, struct.pack("!H", port))
        for number, port in zip((nl.CTA_PROTO_SRC_PORT, nl.CTA_PROTO_DST_PORT), ports, strict=True)
        if port != ABSENT
    ]
    zone = [attribute(nl.CTA_TUPLE_ZONE, struct.pack("!H", flow.reply_zone))] if flow.reply_zone else []
    return nest(
        kind,
        build_addresses(flow, src, dst),
        nest(nl.CTA_TUPLE_PROTO, *proto),
        *(zone if kind == nl.CTA_TUPLE_REPLY else ()),
    )
