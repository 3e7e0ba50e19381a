"""Flow -> the message that ctnetlink would send, for tests without a kernel that has it."""

import struct
from socket import AF_INET

from conntrackd.flow import ABSENT, EventType, Flow, Protocol
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
            attribute(each, struct.pack("!Q", value))
            for each, value in ((nl.CTA_COUNTERS_PACKETS, packets), (nl.CTA_COUNTERS_BYTES, octets))
            if value != ABSENT
        ]
        parts += [nest(kind, *inner)] if inner else []
    if flow.state != ABSENT:
        state = attribute(nl.CTA_PROTOINFO_TCP_STATE, bytes([flow.state]))
        parts.append(nest(nl.CTA_PROTOINFO, nest(nl.CTA_PROTOINFO_TCP, state)))
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


def build_tuple(kind: int, flow: Flow, src: bytes, dst: bytes, ports: tuple[int, int]) -> bytes:
    ends = (
        (nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST)
        if flow.family == AF_INET
        else (nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST)
    )
    proto = [attribute(nl.CTA_PROTO_NUM, bytes([flow.protocol]))]
    if flow.protocol == Protocol.ICMP and flow.icmp_type != ABSENT:
        proto.append(attribute(nl.CTA_PROTO_ICMP_TYPE, bytes([flow.icmp_type])))
        proto.append(attribute(nl.CTA_PROTO_ICMP_CODE, bytes([flow.icmp_code])))
    proto += [
        attribute(each, struct.pack("!H", port))
        for each, port in zip((nl.CTA_PROTO_SRC_PORT, nl.CTA_PROTO_DST_PORT), ports, strict=True)
        if port != ABSENT
    ]
    return nest(
        kind,
        nest(nl.CTA_TUPLE_IP, attribute(ends[0], src), attribute(ends[1], dst)),
        nest(nl.CTA_TUPLE_PROTO, *proto),
    )
