package wsdl

import "context"

// Principal is who a call comes from, as the transport's Guard found out.
type Principal struct {
	Name  string   // "anonymous" where nothing was proven
	Roles []string // from attribute certificates
}

type principalKey struct{}

// WithPrincipal returns a context that carries p. Only a Guard calls it.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalOf returns the caller's Principal; anonymous when none was set.
func PrincipalOf(ctx context.Context) Principal {
	if p, ok := ctx.Value(principalKey{}).(Principal); ok {
		return p
	}
	return Principal{Name: "anonymous"}
}
