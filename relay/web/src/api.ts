// A client of the admin API that uses the browser's sign-in. Its types are in generated/api.

import type { SignInView } from "./generated/api";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

let csrf = "";
let onSignedOut = () => {};

/** Called when the sign-in has ended. */
export function whenSignedOut(tell: () => void): void {
  onSignedOut = tell;
}

async function ask<T>(method: string, path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (method !== "GET" && csrf) headers["x-wai-csrf"] = csrf;
  const init: RequestInit = { method, headers, credentials: "same-origin" };
  if (body !== undefined) init.body = JSON.stringify(body);
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new ApiError("The relay does not answer. Check that it runs and that you are online, then try again.", 0);
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) {
    if (response.status === 401 && csrf) {
      csrf = "";
      onSignedOut();
    }
    throw new ApiError(answer?.error?.message ?? `The relay answered ${response.status}.`, response.status);
  }
  return answer as T;
}

const base = "/admin/v1";
export const get = <T>(path: string) => ask<T>("GET", base + path);
export const post = <T>(path: string, body: unknown = {}) => ask<T>("POST", base + path, body);
export const patch = <T>(path: string, body: unknown) => ask<T>("PATCH", base + path, body);
export const remove = <T>(path: string) => ask<T>("DELETE", base + path);

const sessionPath = "/dashboard/session";

export async function signIn(token: string): Promise<SignInView> {
  const session = await ask<SignInView>("POST", sessionPath, { token });
  csrf = session.csrf;
  return session;
}

/** The admin who is signed in with this browser, or null. Throws `ApiError` if the relay can't say. */
export async function currentSession(): Promise<SignInView | null> {
  const session = await ask<SignInView | null>("GET", sessionPath);
  csrf = session?.csrf ?? "";
  return session;
}

/** Check whether the sign-in is still valid, and report if it has ended. */
export async function checkSession(): Promise<void> {
  const known = csrf;
  const session = await currentSession().catch(() => undefined);
  if (known && session === null) onSignedOut();
}

export async function signOut(): Promise<void> {
  await ask<null>("DELETE", sessionPath);
  csrf = "";
}
