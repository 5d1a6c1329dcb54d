// Package metricsauth lets those read /metrics whom Kubernetes lets: a reader shows
// the token of its service account, and needs the right to get the path.
//
// controller-runtime has a filter that does the same (pkg/metrics/filters) with the
// API server's own code. That brings CEL, OpenTelemetry's exporters and a proxy's
// client along, 23 modules in all, into the process that is root on each node. What
// is left of it without these is two requests.
package metricsauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	// remember is how long an answer of the API server counts.
	remember = time.Minute
	// remembered is how many answers are kept: there are few readers.
	remembered = 256
	// reviewsPerSecond is how often the API server is asked at most, so that
	// made-up tokens can't be used to keep it busy.
	reviewsPerSecond = 10
	// patience is how long the API server may take.
	patience = 5 * time.Second
	// maxToken is longer than any token of Kubernetes.
	maxToken = 16 << 10
)

// answer is what a reader is told, as an HTTP status: 200 for the metrics.
type answer int

// question is what the API server is asked about.
type question struct {
	token        [sha256.Size]byte
	method, path string
}

type filter struct {
	tokens  authenticationclient.TokenReviewInterface
	rights  authorizationclient.SubjectAccessReviewInterface
	limiter *rate.Limiter
	answers *utilcache.LRUExpireCache
}

// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// Provider makes the filter for a metrics server of controller-runtime.
func Provider(config *rest.Config, httpClient *http.Client) (metricsserver.Filter, error) {
	tokens, err := authenticationclient.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("create client for token reviews: %w", err)
	}
	rights, err := authorizationclient.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("create client for access reviews: %w", err)
	}
	f := &filter{
		tokens: tokens.TokenReviews(), rights: rights.SubjectAccessReviews(),
		limiter: rate.NewLimiter(reviewsPerSecond, reviewsPerSecond), answers: utilcache.NewLRUExpireCache(remembered),
	}
	return f.wrap, nil
}

// wrap implements metricsserver.Filter.
func (f *filter) wrap(log logr.Logger, handler http.Handler) (http.Handler, error) {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := f.ask(r)
		if err != nil {
			log.Error(err, "Find out who reads metrics", "reader", r.RemoteAddr)
		}
		if answer != http.StatusOK {
			http.Error(w, http.StatusText(int(answer)), int(answer))
			return
		}
		handler.ServeHTTP(w, r)
	}), nil
}

// ask says what to answer to a request. The error is the API server's.
func (f *filter) ask(r *http.Request) (answer, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return http.StatusUnauthorized, nil
	}
	q := question{sha256.Sum256([]byte(token)), strings.ToLower(r.Method), r.URL.Path}
	if known, ok := f.answers.Get(q); ok {
		return known.(answer), nil
	}
	if !f.limiter.Allow() {
		return http.StatusTooManyRequests, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	answer, err := f.review(ctx, token, q)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	f.answers.Add(q, answer, remember)
	return answer, nil
}

// review asks the API server whose token that is, and what they may do.
func (f *filter) review(ctx context.Context, token string, q question) (answer, error) {
	whose, err := f.tokens.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return 0, fmt.Errorf("review a token: %w", err)
	}
	if !whose.Status.Authenticated {
		return http.StatusUnauthorized, nil
	}
	user := whose.Status.User
	if user.Username == "" {
		return 0, errors.New("review a token: it is good, and nobody's")
	}
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for key, value := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(value)
	}
	may, err := f.rights.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: q.path, Verb: q.method},
		User:                  user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
	}}, metav1.CreateOptions{})
	if err != nil {
		return 0, fmt.Errorf("review the rights of %s: %w", user.Username, err)
	}
	if !may.Status.Allowed || may.Status.Denied {
		return http.StatusForbidden, nil
	}
	return http.StatusOK, nil
}
