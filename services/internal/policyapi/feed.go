package policyapi

import (
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/feed"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

// Feed implements policyv1.PolicyFeedServer.
type Feed struct {
	policyv1.UnimplementedPolicyFeedServer
	Hub *feed.Hub
}

// Subscriber roles, the first word of a subscriber's name in the hub.
const (
	roleWorker = "worker"
	roleKeymgr = "keymgr"
)

// Subscribe is one subscriber's stream.
func (f *Feed) Subscribe(st policyv1.PolicyFeed_SubscribeServer) error {
	caller, err := rpc.CallerOf(st.Context())
	if err != nil {
		return err
	}
	first, err := st.Recv()
	if err != nil {
		return err
	}
	req, err := request(caller, first.GetSubscription())
	if err != nil {
		return err
	}
	sub, err := f.Hub.Subscribe(req)
	if errors.Is(err, feed.ErrClosed) {
		return status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	defer sub.Close()
	answers := make(chan error, 1)
	go func() { answers <- receive(st, sub) }()
	deltas := make(chan error, 1)
	go func() { deltas <- send(st, sub) }()
	select {
	case err = <-answers:
		if errors.Is(err, io.EOF) { // the subscriber has closed its side
			err = nil
		}
	case err = <-deltas:
		return status.Error(codes.Aborted, err.Error())
	}
	return err
}

func request(caller rpc.Caller, m *policyv1.Subscription) (feed.Request, error) {
	r := feed.Request{Subscriber: m.GetRole() + "/" + m.GetSubscriber(), Node: m.GetNode(), Versions: map[feed.ID]string{}}
	allowed := false
	switch m.GetRole() {
	case roleWorker:
		allowed = caller.Role != rpc.RoleKeymgrd && m.GetNode() != "" && caller.Is(m.GetNode()) && m.GetSubscriber() == m.GetNode()
	case roleKeymgr:
		allowed = caller.Role != rpc.RoleWorker && caller.Is(m.GetSubscriber())
	default:
		return r, status.Errorf(codes.InvalidArgument, "the first message must be a subscription with role worker or keymgr, got role %q", m.GetRole())
	}
	if !allowed {
		return r, status.Errorf(codes.PermissionDenied, "%s may not subscribe as %s %q to node %q", caller, m.GetRole(), m.GetSubscriber(), m.GetNode())
	}
	for _, h := range m.GetHave() {
		r.Versions[fromKey(h.GetKey())] = h.GetVersion()
	}
	return r, nil
}

func fromKey(k *policyv1.ResourceKey) feed.ID {
	return feed.ID{Kind: feed.Kind(k.GetKind()), Node: k.GetNode(), Name: k.GetName()}
}

func toKey(i feed.ID) *policyv1.ResourceKey {
	return &policyv1.ResourceKey{Kind: string(i.Kind), Node: i.Node, Name: i.Name}
}

func receive(st policyv1.PolicyFeed_SubscribeServer, sub *feed.Subscription) error {
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		switch a := m.GetMessage().(type) {
		case *policyv1.SubscribeRequest_Ack:
			err = sub.Ack(a.Ack)
		case *policyv1.SubscribeRequest_Nack:
			err = sub.Nack(a.Nack.GetNonce(), fromKey(a.Nack.GetKey()), a.Nack.GetWhy())
		default:
			return status.Error(codes.InvalidArgument, "want an ack or a nack")
		}
		if err != nil {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
	}
}

func send(st policyv1.PolicyFeed_SubscribeServer, sub *feed.Subscription) error {
	for {
		d, err := sub.Next(st.Context())
		if err != nil {
			return err
		}
		if err := st.Send(toDelta(d)); err != nil {
			return err
		}
	}
}

func toDelta(d feed.Delta) *policyv1.SubscribeResponse {
	m := &policyv1.SubscribeResponse{Nonce: d.Nonce, Store: convert.ToVersion(d.Version)}
	for _, r := range d.Upserts {
		rm := &policyv1.Resource{Key: toKey(r.ID), Version: r.Version}
		switch v := r.Value.(type) {
		case compile.Settings:
			rm.Value = &policyv1.Resource_Settings{Settings: toSettings(v)}
		case ipsec.Rule:
			rm.Value = &policyv1.Resource_Rule{Rule: convert.ToRule(&v)}
		case ipsec.Peer:
			rm.Value = &policyv1.Resource_Peer{Peer: convert.ToPeer(&v)}
		}
		m.Resources = append(m.Resources, rm)
	}
	for _, id := range d.Removed {
		m.Removed = append(m.Removed, toKey(id))
	}
	return m
}

func toSettings(s compile.Settings) *policyv1.NodeSettings {
	return &policyv1.NodeSettings{Addresses: convert.ToAddrs(s.Addresses), DefaultAction: ipsecv1.Action(s.Default), FailClosed: s.FailClosed, KeepMss: s.KeepMSS}
}

func toSubscriber(s feed.Status) *policyv1.SubscriberStatus {
	role, name, _ := strings.Cut(s.Subscriber, "/")
	m := &policyv1.SubscriberStatus{
		Name: name, Role: role, Connected: s.Connected, Since: convert.Time(s.Since),
		AckedRevision: s.Acked.Revision, InSync: s.InSync,
	}
	if s.Nack != nil {
		m.LastNack = s.Nack.Resource.String() + ": " + s.Nack.Why
	}
	return m
}
