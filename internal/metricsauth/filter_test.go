package metricsauth

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// apiServer answers reviews: the token "good" is of a user who may get /metrics,
// "poor" of one who may not.
type apiServer struct {
	down    bool
	reviews int
	asked   *authorizationv1.SubjectAccessReviewSpec
}

func (a *apiServer) filter(t *testing.T) http.Handler {
	t.Helper()
	set := fake.NewClientset()
	set.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		a.reviews++
		if a.down {
			return true, nil, errors.New("no connection")
		}
		review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		if token := review.Spec.Token; token == "good" || token == "poor" {
			review.Status.Authenticated = true
			review.Status.User = authenticationv1.UserInfo{
				Username: token, UID: "1", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}},
			}
		}
		return true, review, nil
	})
	set.PrependReactor("create", "subjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
		a.asked = &review.Spec
		review.Status.Allowed = review.Spec.User == "good" && review.Spec.NonResourceAttributes.Path == "/metrics"
		return true, review, nil
	})
	f := &filter{
		tokens: set.AuthenticationV1().TokenReviews(), rights: set.AuthorizationV1().SubjectAccessReviews(),
		limiter: rate.NewLimiter(reviewsPerSecond, reviewsPerSecond), answers: utilcache.NewLRUExpireCache(remembered),
	}
	handler, err := f.wrap(logr.Discard(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("metrics")) }))
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

func read(t *testing.T, handler http.Handler, path, authorization string) (int, string) {
	t.Helper()
	request := httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, http.NoBody)
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, request)
	return answer.Code, answer.Body.String()
}

func TestReadersAreWhomKubernetesLets(t *testing.T) {
	a := &apiServer{}
	handler := a.filter(t)
	for _, tt := range []struct {
		path, authorization string
		code                int
	}{
		{"/metrics", "Bearer good", 200},
		{"/metrics", "bearer  good ", 200},
		{"/other", "Bearer good", 403},
		{"/metrics", "Bearer poor", 403},
		{"/metrics", "Bearer bad", 401},
		{"/metrics", "Bearer ", 401},
		{"/metrics", "Basic good", 401},
		{"/metrics", "good", 401},
		{"/metrics", "", 401},
		{"/metrics", "Bearer " + strings.Repeat("x", maxToken+1), 401},
	} {
		code, body := read(t, handler, tt.path, tt.authorization)
		if code != tt.code || (body == "metrics") != (code == 200) {
			t.Errorf("%s with %.30q: status %d, body %q, want %d", tt.path, tt.authorization, code, body, tt.code)
		}
	}
	if a.asked.UID != "1" || len(a.asked.Groups) != 1 || len(a.asked.Extra) != 1 || a.asked.NonResourceAttributes.Verb != "get" {
		t.Errorf("asked about %+v", a.asked)
	}
}

func TestAnAnswerCountsForAWhile(t *testing.T) {
	a := &apiServer{}
	handler := a.filter(t)
	for range 100 {
		if code, _ := read(t, handler, "/metrics", "Bearer good"); code != 200 {
			t.Fatalf("status %d", code)
		}
	}
	if a.reviews != 1 {
		t.Errorf("the API server was asked %d times", a.reviews)
	}
}

func TestMadeUpTokensDoNotKeepTheAPIServerBusy(t *testing.T) {
	a := &apiServer{}
	handler := a.filter(t)
	refused := 0
	for n := range 1000 {
		if code, _ := read(t, handler, "/metrics", "Bearer "+strings.Repeat("x", n+1)); code == http.StatusTooManyRequests {
			refused++
		}
	}
	if a.reviews > 2*reviewsPerSecond || refused == 0 {
		t.Errorf("the API server was asked %d times, %d readers were refused", a.reviews, refused)
	}
}

func TestAnAPIServerThatIsDownLetsNobodyIn(t *testing.T) {
	a := &apiServer{down: true}
	handler := a.filter(t)
	if code, body := read(t, handler, "/metrics", "Bearer good"); code != http.StatusServiceUnavailable || body == "metrics" {
		t.Errorf("status %d", code)
	}
	a.down = false
	if code, _ := read(t, handler, "/metrics", "Bearer good"); code != 200 {
		t.Errorf("status %d when it is back", code)
	}
}
