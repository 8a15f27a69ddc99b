// Package rpc is the gRPC chassis of the services: mutual TLS or unix sockets,
// a per-method allow-list of roles, health, reflection, and recovery from
// panics at the call boundary.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

// Allow says which roles may call which method, by full name
// ("/package.Service/Method"). RoleLocal may call all of them; health and
// reflection are open to every authenticated caller. A method that is not in
// the table may be called by RoleLocal only.
type Allow map[string][]Role

func (a Allow) check(ctx context.Context, method string) error {
	c, err := CallerOf(ctx)
	if err != nil {
		return err
	}
	if c.Role == RoleLocal || strings.HasPrefix(method, "/grpc.health.v1.") || strings.HasPrefix(method, "/grpc.reflection.") {
		return nil
	}
	for _, r := range a[method] {
		if r == c.Role {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied, "%s may not call %s", c, method)
}

// Server is a gRPC server on one or more addresses.
type Server struct {
	Health *health.Server

	log       *slog.Logger
	listeners []net.Listener
	servers   []*grpc.Server // one for each listener: their credentials differ
}

// Listen opens the addresses ("unix:///path" or "host:port") and registers the
// services on each of them. On error nothing stays open.
func Listen(log *slog.Logger, addresses []string, files config.TLS, allow Allow, register func(grpc.ServiceRegistrar)) (*Server, error) {
	s := &Server{Health: health.NewServer(), log: log}
	for _, a := range addresses {
		if err := s.listen(a, files, allow, register); err != nil {
			s.close()
			return nil, fmt.Errorf("listen %s: %w", a, err)
		}
	}
	return s, nil
}

func (s *Server) listen(address string, files config.TLS, allow Allow, register func(grpc.ServiceRegistrar)) error {
	var creds credentials.TransportCredentials
	var l net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		l, err = listenUnix(path)
		self := uint32(os.Getuid())
		creds = localCredentials{allow: func(uid uint32) bool { return uid == 0 || uid == self }}
	} else {
		id, idErr := newIdentity(files)
		if idErr != nil {
			return idErr
		}
		l, err = net.Listen("tcp", address)
		creds = credentials.NewTLS(id.serverConfig())
	}
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.Creds(&told{TransportCredentials: creds, log: s.log}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
			defer s.recovered(info.FullMethod, &err)
			if err := allow.check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer s.recovered(info.FullMethod, &err)
			if err := allow.check(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.WaitForHandlers(true),
	)
	healthpb.RegisterHealthServer(g, s.Health)
	reflection.Register(g)
	register(g)
	s.listeners = append(s.listeners, l)
	s.servers = append(s.servers, g)
	return nil
}

// maxMessage bounds one message: a batch of some ten thousand SAs or rules.
const maxMessage = 32 << 20

// window is how much may be on its way, of a stream and of a connection. It is fixed:
// else each end sends a ping with nearly each message, to learn the delay and fit the
// window to it, and the ping wakes both daemons twice.
const window = 4 << 20

func (s *Server) recovered(method string, err *error) {
	if r := recover(); r != nil {
		s.log.Error("panic in a call", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; see the daemon's log")
	}
}

// listenUnix replaces a socket that a killed process left behind, but not one
// that somebody answers on, nor a file of another kind.
func listenUnix(path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("%s is a %s, want a socket or nothing; move it away", path, kindOf(st.Mode()))
	default:
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = c.Close()
		}
		// A full backlog is somebody too: only a refusal says that nobody listens.
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("another process serves %s; stop it first", path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Others may connect; who they are is asked of the kernel at the handshake.
	if err := os.Chmod(path, 0o666); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func kindOf(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m.IsRegular():
		return "file"
	}
	return m.Type().String()
}

// Addresses are what the server listens on, with ports chosen by the system.
func (s *Server) Addresses() []string {
	var out []string
	for _, l := range s.listeners {
		if l.Addr().Network() == "unix" {
			out = append(out, "unix://"+l.Addr().String())
		} else {
			out = append(out, l.Addr().String())
		}
	}
	return out
}

// Run serves until ctx ends. Calls and streams that are under way are ended
// then, and their handlers waited for: clients call again and reconnect.
func (s *Server) Run(ctx context.Context) error {
	errc := make(chan error, len(s.servers))
	for i, g := range s.servers {
		go func() { errc <- g.Serve(s.listeners[i]) }()
	}
	s.Health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	var err error
	select {
	case <-ctx.Done():
	case err = <-errc:
	}
	s.Health.Shutdown()
	s.close()
	return err
}

func (s *Server) close() {
	for _, g := range s.servers {
		g.Stop()
	}
	for _, l := range s.listeners {
		_ = l.Close() // which removes a unix socket's file
	}
}
