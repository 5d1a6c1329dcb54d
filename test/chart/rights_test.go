package chart

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// attempt is a request that somebody may or may not make.
type attempt struct {
	verb, group, version, resource, subresource, namespace, name string
}

// TestControllerMayDoNothingElse tries every verb on every resource that the API
// server has, everywhere, with the token of the controller's service account. What
// no rule grants has to be forbidden, and what one does must not be.
func TestControllerMayDoNothingElse(t *testing.T) {
	c := newClient(t)
	for _, name := range []string{namespace, "tenant"} {
		if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metaNamed(name)}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	for _, o := range slices.Concat(render(t, "--show-only", "templates/rbac.yaml"), render(t, "--show-only", "templates/serviceaccounts.yaml")) {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	config := tokenOf(t, "berth-controller")
	granted := rulesOf(t, "berth-controller")
	attempts := everyAttempt(t)
	forbidden, allowed := 0, 0
	var mu sync.Mutex
	work := make(chan attempt)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			client := &http.Client{Transport: transport(t, config)}
			for a := range work {
				code, text := a.send(t, client, config.Host)
				want := granted(a)
				mu.Lock()
				switch {
				case code == http.StatusForbidden && strings.Contains(text, "cannot"):
					forbidden++
					if want {
						t.Errorf("%+v is forbidden: %s", a, text)
					}
				default:
					allowed++
					if !want {
						t.Errorf("%+v is not forbidden, but %d: %s", a, code, text)
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, a := range attempts {
		work <- a
	}
	close(work)
	workers.Wait()
	t.Logf("%d attempts: %d forbidden, %d allowed by a rule", len(attempts), forbidden, allowed)
	if forbidden == 0 || allowed == 0 {
		t.Error("this test has shown nothing")
	}
}

// everyAttempt lists them: for objects in no namespace, in Berth's, in another,
// and in all at once; for names that a rule has, and for others.
func everyAttempt(t *testing.T) []attempt {
	t.Helper()
	client := kubernetes.NewForConfigOrDie(apiServer(t).Config())
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"x", "berth-ca", "berth-agent-tls", "hostpath.berth.storage", "nfs.berth.storage", "kube-system", "berth.storage"}
	var all []attempt
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			resource, subresource, _ := strings.Cut(r.Name, "/")
			namespaces := []string{""}
			if r.Namespaced {
				namespaces = []string{namespace, "tenant"}
			}
			base := attempt{group: gv.Group, version: gv.Version, resource: resource, subresource: subresource}
			for _, ns := range namespaces {
				a := base
				a.namespace = ns
				for _, name := range names {
					a.name = name
					for _, verb := range []string{"get", "update", "patch", "delete"} {
						a.verb = verb
						all = append(all, a)
					}
					if subresource != "" {
						a.verb = "create"
						all = append(all, a)
					}
				}
				if a.name = ""; subresource == "" {
					for _, verb := range []string{"list", "watch", "create", "deletecollection"} {
						a.verb = verb
						all = append(all, a)
					}
				}
			}
			if r.Namespaced && subresource == "" {
				for _, verb := range []string{"list", "watch"} {
					a := base
					a.verb = verb
					all = append(all, a)
				}
			}
		}
	}
	return all
}

var methods = map[string]string{
	"get": http.MethodGet, "list": http.MethodGet, "watch": http.MethodGet, "create": http.MethodPost, "update": http.MethodPut,
	"patch": http.MethodPatch, "delete": http.MethodDelete, "deletecollection": http.MethodDelete,
}

// send makes the request, in a way that changes nothing where it is allowed:
// rights are looked at before what is in it.
func (a attempt) send(t *testing.T, client *http.Client, host string) (code int, text string) {
	path := "/apis/" + a.group + "/" + a.version
	if a.group == "" {
		path = "/api/" + a.version
	}
	if a.namespace != "" {
		path += "/namespaces/" + a.namespace
	}
	path += "/" + a.resource
	for _, part := range []string{a.name, a.subresource} {
		if part != "" {
			path += "/" + part
		}
	}
	query := "?dryRun=All"
	switch a.verb {
	case "get", "list":
		query = ""
	case "watch":
		query = "?watch=1&timeoutSeconds=1"
	}
	request, err := http.NewRequestWithContext(t.Context(), methods[a.verb], host+path+query, strings.NewReader("{"))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	request.Header.Set("Content-Type", "application/json")
	if a.verb == "patch" {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := client.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 500))
	return response.StatusCode, string(body)
}

// tokenOf returns a configuration with a token for a service account.
func tokenOf(t *testing.T, name string) *rest.Config {
	t.Helper()
	admin := apiServer(t).Config()
	client := kubernetes.NewForConfigOrDie(admin)
	token, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken = token.Status.Token
	return config
}

func transport(t *testing.T, config *rest.Config) http.RoundTripper {
	t.Helper()
	rt, err := rest.TransportFor(config)
	if err != nil {
		t.Error(err)
	}
	return rt
}

// rulesOf returns what tells whether a service account may do something: by the
// rules of the chart, and by those that every service account has.
func rulesOf(t *testing.T, name string) func(attempt) bool {
	t.Helper()
	client := kubernetes.NewForConfigOrDie(apiServer(t).Config())
	everybodys := []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + namespace}
	isOurs := func(subjects []rbacv1.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
			return s.Kind == rbacv1.ServiceAccountKind && s.Name == name && s.Namespace == namespace ||
				s.Kind == rbacv1.GroupKind && slices.Contains(everybodys, s.Name)
		})
	}
	rules := map[string][]rbacv1.PolicyRule{} // by namespace, "" for all
	clusterBindings, err := client.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range clusterBindings.Items {
		if !isOurs(b.Subjects) {
			continue
		}
		role, err := client.RbacV1().ClusterRoles().Get(t.Context(), b.RoleRef.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rules[""] = append(rules[""], role.Rules...)
	}
	bindings, err := client.RbacV1().RoleBindings("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bindings.Items {
		if !isOurs(b.Subjects) {
			continue
		}
		role, err := client.RbacV1().Roles(b.Namespace).Get(t.Context(), b.RoleRef.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(fmt.Errorf("%s/%s: %w", b.Namespace, b.Name, err))
		}
		rules[b.Namespace] = append(rules[b.Namespace], role.Rules...)
	}
	return func(a attempt) bool {
		return slices.ContainsFunc(rules[""], a.allowedBy) || a.namespace != "" && slices.ContainsFunc(rules[a.namespace], a.allowedBy)
	}
}

func (a attempt) allowedBy(rule rbacv1.PolicyRule) bool {
	resource := a.resource
	if a.subresource != "" {
		resource += "/" + a.subresource
	}
	has := func(list []string, value string) bool {
		return slices.Contains(list, value) || slices.Contains(list, "*")
	}
	return has(rule.Verbs, a.verb) && has(rule.APIGroups, a.group) && has(rule.Resources, resource) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.name))
}
